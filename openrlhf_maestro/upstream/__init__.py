"""The only package that knows OpenRLHF's private names: device, patches, option mapping."""
