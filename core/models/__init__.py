"""Model families: whole models, and the parts that they are cut into."""
