"""An operation of a document, with all that is worked out of it once and used each time it is asked for."""

from graphql import DocumentNode, OperationDefinitionNode

from schema.documents.cost import Costing
from schema.documents.rate_units import RateCost
from schema.plans.query_plan import AnyPlan, Plan


class PreparedOperation:
    """An operation that is known to be valid."""

    def __init__(self, document: DocumentNode, node: OperationDefinitionNode) -> None:
        self.node = node
        self.pricing = RateCost(document, node)
        self.costing = Costing(document, node)
        self.plan: AnyPlan | None = None
        self.planned = False
        """Whether `plan` says what it is to say: it is made when the operation is first run."""

    def weight(self, tokens: int) -> int:
        """Estimate how many bytes its plan takes, beyond those that a document of so many tokens is weighed with."""
        return self.plan.weight(tokens) if isinstance(self.plan, Plan) else 0
