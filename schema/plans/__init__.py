"""Plans: a GraphQL operation compiled once into one SQL statement."""
