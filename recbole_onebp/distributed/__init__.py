"""Training in several processes: users are shared out, items are everybody's; see ``docs/distributed.md``.

``ranks`` are the processes and what they do together, on torch.distributed; ``sharding`` shares the data out; ``host`` is
the memory that the processes of one machine share; ``launch`` starts processes as RecBole's ``--nproc`` does.
"""
