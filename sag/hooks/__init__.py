"""Plugins: what they may implement and register, how they are found, loaded, isolated and reported."""
