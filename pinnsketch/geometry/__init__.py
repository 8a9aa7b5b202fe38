"""Where a problem lives: shapes by signed distance, and the regions (interior, boundary, faces) to put residuals on."""

from pinnsketch.geometry.box import Box
from pinnsketch.geometry.combine import Combined, Product
from pinnsketch.geometry.plane import Disk, Polygon
from pinnsketch.geometry.shape import EmptyRegion, GeometryError, Piece, Region, Shape

__all__ = ["Box", "Combined", "Disk", "EmptyRegion", "GeometryError", "Piece", "Polygon", "Product", "Region", "Shape"]
