"""The same algorithms on Flower: real nodes, real networks.

client_app.py runs on a node and hands its work to worker.py, which keeps a node.py: model, data and memories.
server_app.py runs beside the SuperLink: the simulator's rounds, whose engine is rounds.py; guard.py reads what comes.
"""
