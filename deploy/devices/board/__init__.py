"""Boards: what is the same whichever transport reaches the device. The transports are beside this folder."""
