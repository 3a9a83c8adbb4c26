"""The control API, ``/easel/v1``: services, instances, tasks; described by OpenAPI, errors as problem+json."""
