"""What a person reads of a run: the table and the model card."""
