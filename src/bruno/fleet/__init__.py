"""Machines: offers, instances, SSH, files. The only room that talks to Vast.ai or a host (vastai, fabric, paramiko).

`vast` reads from the provider, `acts` does what a permit covers, `waits` polls until it is so; `keys`, `host_keys` and `host`
are SSH; `files` copies with hashes, `jobs` launches detached under a lock, `parcel` packs the engine as a wheel. Every module is
imported by its own name, since each brings its own heavy library.
"""
