"""What a run of either model needs: checkpoints, logs, locks, command lines, a terminal."""
