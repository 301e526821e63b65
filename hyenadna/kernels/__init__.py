"""The operators that a DNA language model spends its time on, each in one file."""
