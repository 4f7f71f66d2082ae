"""A packed model as SageMaker asks for it: GET /ping, POST /invocations."""
