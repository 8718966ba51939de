"""A stand-in for the WebUI's ``modules``, small enough to read: what the adapter touches, behaving as A1111 v1.10.1.

Written from measured behaviour, not copied. ``tests/webui/test_contract.py`` holds its signatures to a real WebUI's.
"""
