"""The room behind both doors: plain async functions that know neither HTTP nor GraphQL."""
