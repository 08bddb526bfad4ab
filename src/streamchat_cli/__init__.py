"""The `streamchat` command: parse, call, print.

It is a package of its own because `streamchat_hf` begins with torch and transformers, which take seconds to load. A
command imports what it needs when it runs, and `streamchat --help` nothing.
"""
