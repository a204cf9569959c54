"""GraphQL documents: parsing, validation, limits, cost and trusted documents."""
