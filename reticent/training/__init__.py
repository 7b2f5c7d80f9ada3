"""One loop, private or not, that survives being killed."""
