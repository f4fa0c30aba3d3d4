"""Boards: the code that does not depend on the transport. The transports are next to this folder."""
