"""`orpo-ray doctor`: is this machine, or every node of this cluster, fit for a run?"""
