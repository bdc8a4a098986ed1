"""The page that shows how scores are made: what the database says, as one file of HTML."""
