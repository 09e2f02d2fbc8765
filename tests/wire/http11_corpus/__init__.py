"""Raw messages and what is to come of them, as plain data in the order of RFC 9112."""
