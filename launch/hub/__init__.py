"""The Hugging Face Hub: what is pushed, and the page it gets."""
