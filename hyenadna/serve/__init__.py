"""The HTTP application: what it computes, how it batches, its page."""
