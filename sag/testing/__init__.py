"""Public fakes for plugin authors; what is here is part of the plugin contract.

`sag.testing.upstream` is a fake model server that does everything that real ones do wrong.
"""
