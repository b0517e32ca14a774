"""Training in several processes: users are shared out, items are everybody's; see ``docs/distributed.md``.

``ranks`` are the processes and what they do together, on torch.distributed; ``users`` shares the data out; ``host`` is
the memory that the processes of one machine share; ``launch`` starts processes as RecBole's ``--nproc`` does.
"""

MEETING_FILE = "RECBOLE_ONEBP_MEETING_FILE"
"""Environment variable: the file in which processes of one host find each other, so that no port is open."""
