"""Samples of all combinations of values in which every pair of values of two factors is somewhere."""
import itertools


def sample(factors, valid, rng, choices=100):
    """factors: {name: values}. valid(combination) tells which combinations there are; pairs that none of these has are
    not missed. The same rng gives the same sample."""
    names = list(factors)
    everything = [dict(zip(names, values)) for values in itertools.product(*factors.values())]
    everything = [combination for combination in everything if valid(combination)]
    # In a random order, so that a slice of it is a random choice.
    rng.shuffle(everything)

    def pairs(combination):
        return set(itertools.combinations(combination.items(), 2))

    left = set().union(*(pairs(combination) for combination in everything[:20000]))
    taken = []
    at = 0
    while left:
        best, most = None, 0
        # Whoever has most of the pairs that are left, out of some; all of them when few pairs are left.
        for number in range(len(everything)):
            combination = everything[(at + number) % len(everything)]
            count = len(pairs(combination) & left)
            if count > most:
                best, most = combination, count
            if number >= choices and best:
                break
        at += number
        if not best:
            break
        taken.append(best)
        left -= pairs(best)
    return taken
