"""Checks values against what query-qmp-schema says about them. For tests that compare replies and events with the
schema that the daemon itself hands out."""


class SchemaInfo:
    """The array that query-qmp-schema returns."""

    def __init__(self, entities):
        self.entities = {e["name"]: e for e in entities}
        if len(self.entities) != len(entities):
            raise ValueError("a name is there twice")

    def faults(self, type_name, value, where="value"):
        """What is wrong with value as one of that type: a list of texts, empty if all is well."""
        entity = self.entities.get(type_name)
        if entity is None:
            return [f"{where}: there is no type '{type_name}'"]
        return getattr(self, "_" + entity["meta-type"])(entity, value, where)

    def reply_faults(self, command, value):
        return self.faults(self.entities[command]["ret-type"], value, command)

    def event_faults(self, event):
        """event: the whole message."""
        entity = self.entities.get(event["event"])
        if entity is None or entity["meta-type"] != "event":
            return [f"there is no event '{event['event']}'"]
        return self.faults(entity["arg-type"], event.get("data", {}), event["event"])

    def _builtin(self, entity, value, where):
        kinds = {"string": str, "int": int, "boolean": bool, "null": type(None), "value": object}
        kind = kinds[entity["json-type"]]
        good = isinstance(value, kind) and not (kind is int and isinstance(value, bool))
        return [] if good else [f"{where}: {value!r} is not of type {entity['json-type']}"]

    def _enum(self, entity, value, where):
        return [] if value in entity["values"] else [f"{where}: {value!r} is not in {entity['name']}"]

    def _array(self, entity, value, where):
        if not isinstance(value, list):
            return [f"{where}: {value!r} is no array"]
        return [f for i, v in enumerate(value) for f in self.faults(entity["element-type"], v, f"{where}[{i}]")]

    def _alternate(self, entity, value, where):
        if any(not self.faults(m["type"], value) for m in entity["members"]):
            return []
        return [f"{where}: {value!r} fits nothing of {entity['name']}"]

    def members(self, entity, value):
        """All members that the object value may have, with those of its variant."""
        found = {m["name"]: m for m in entity["members"]}
        for variant in entity.get("variants", []):
            if value.get(entity["tag"]) == variant["case"]:
                found |= self.members(self.entities[variant["type"]], value)
        return found

    def _object(self, entity, value, where):
        if not isinstance(value, dict):
            return [f"{where}: {value!r} is no object"]
        members = self.members(entity, value)
        found = [f"{where}.{name}: is in no schema" for name in value if name not in members]
        for name, member in members.items():
            if name in value:
                found += self.faults(member["type"], value[name], f"{where}.{name}")
            elif "default" not in member:
                found.append(f"{where}.{name}: is missing")
        return found
