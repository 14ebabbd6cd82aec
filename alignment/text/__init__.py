"""Text: data sets, conversations, and what is made of installed packages."""
