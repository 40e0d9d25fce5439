"""Inventory of a scan: ground, classes, single trees and blocks of buildings, each with a number."""
