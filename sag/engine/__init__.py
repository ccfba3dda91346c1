"""Runs: the step loop, live config, asks, tools, the transcript, the way to the models."""
