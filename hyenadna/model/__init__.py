"""The HyenaDNA language model: its configuration, its layers and its files."""
