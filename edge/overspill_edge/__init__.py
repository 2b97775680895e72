"""The daemon: one loaded model, one policy, one purse, shared by the programs of one user."""
