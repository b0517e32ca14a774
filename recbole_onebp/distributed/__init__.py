"""Training in several processes: each has some of the users and all of the items.  See ``docs/distributed.md``.

- ``ranks``: the processes and their collective operations, on torch.distributed.
- ``sharding``: the users of each process.
- ``host``: memory that the processes of one host share.
- ``launch``: starts the processes of this host, for RecBole's ``--nproc``.
"""

MEETING_FILE = "RECBOLE_ONEBP_MEETING_FILE"
"""Environment variable: the file in which processes of one host find each other, so that no port is open."""
