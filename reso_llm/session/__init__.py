"""State of a model between calls: goals, foci, concepts, episodes, links to other agents."""
