"""What a model keeps between calls: goals, foci, concepts, memories, links to other agents."""
