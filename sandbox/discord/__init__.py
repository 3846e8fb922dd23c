"""A loopback Discord: REST, gateway, interactions, and acting as its people."""
