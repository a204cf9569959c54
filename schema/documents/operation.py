"""An operation of a document with everything derived from it once: its plan, its cost and its rate units."""

from graphql import DocumentNode, OperationDefinitionNode

from schema.documents.cost import Costing
from schema.documents.rate_units import RateCost
from schema.plans.query_plan import AnyPlan, Plan


class PreparedOperation:
    """A valid operation with its cached derivations."""

    def __init__(self, document: DocumentNode, node: OperationDefinitionNode) -> None:
        self.node = node
        self.pricing = RateCost(document, node)
        self.costing = Costing(document, node)
        self.plan: AnyPlan | None = None
        self.planned = False
        """Whether planning has been tried, which happens when the operation is first run."""

    def weight(self, tokens: int) -> int:
        """Estimate the bytes of the plan beyond those included in the weight of a document with this many tokens."""
        return self.plan.weight(tokens) if isinstance(self.plan, Plan) else 0
