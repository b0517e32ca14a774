"""Checkpoints of a run.

``state`` collects and restores the training state, ``store`` writes and reads it, ``model_file`` holds the best model.
``saver`` saves a run while it trains; ``clock`` tells it when, and ``signals`` when to stop.  ``resume`` finds a
checkpoint and checks that it belongs to the run.
"""
