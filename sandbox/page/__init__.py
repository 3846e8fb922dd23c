"""The loopback Discord as a page in a browser."""
