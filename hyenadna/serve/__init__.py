"""The HTTP application: what it computes, how requests share batches, and its page."""
