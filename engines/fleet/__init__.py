"""Images of a job drawn by the machines of a Ray cluster, each with a pipeline of its own.

    driver: chunks of a job -> Fleet -> FleetWorker on a node -> images -> driver: the job's sinks

`cluster.py` is the connection to Ray, the only module that imports it, and only when it is asked to connect: the extra
`ray`. `worker.py` is what runs on the nodes, `pool.py` decides who draws what, `bundles.py` brings the bundle there.
"""
