"""SageMaker: the same checkpoint behind an AWS endpoint. Nothing else of the server imports this."""
