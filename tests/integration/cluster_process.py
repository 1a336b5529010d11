"""Two Ray nodes on this machine that want a token, for `test_doctor_cluster.py`; the second has other packages.

In a process of its own, for Ray reads its authentication mode when it is imported. Prints the address; ends when its
standard input does.
"""

import sys

from ray.cluster_utils import Cluster

cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
cluster.add_node(num_cpus=1, env_vars={"PYTHONPATH": sys.argv[1]})
print(cluster.address, flush=True)
sys.stdin.read()
cluster.shutdown()
