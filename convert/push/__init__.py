"""Publishing: a finished directory goes to a repository on the Hub, with a model card made from the files in it."""
