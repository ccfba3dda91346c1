"""The structs of what travels and what is kept: events, conversations, runs, tools, models, clients. No behaviour."""
