import threading

import pytest

from mnv2.training.together import Group


def in_threads(members, call):
    """Calls a function for each member in a thread of its own; returns the results or errors."""
    results = {}

    def work(i, member):
        try:
            results[i] = call(i, member)
        except Exception as error:
            results[i] = error

    threads = [
        threading.Thread(target=work, args=(i, member), daemon=True)
        for i, member in enumerate(members)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()
    return [results[i] for i in range(len(members))]


def test_members_agree_on_the_smallest_number_and_each_gets_its_part():
    def call(i, member):
        count = member.agree(10 + i)
        return count, member.compute(i, lambda parts: [part * sum(parts) for part in parts])

    assert in_threads(Group(3).members(), call) == [(10, 0), (10, 3), (10, 6)]


def test_a_member_that_leaves_is_not_waited_for():
    def call(i, member):
        counts = [member.agree(10 + i)]
        if i == 0:
            member.leave()
            member.leave()
            return counts
        return [*counts, member.agree(10 + i)]

    assert in_threads(Group(3).members(), call) == [[10], [10, 11], [10, 11]]


def test_all_members_stop_after_the_same_step():
    answers = []
    group = Group(2, stops=lambda: len(answers) == 2)

    def call(i, member):
        answers.append(member.agree(5))
        return answers[-1] and member.agree(5)

    assert in_threads(group.members(), call) == [0, 0]
    assert answers[:2] == [5, 5]


def test_an_error_of_the_common_program_is_raised_in_every_run():
    def call(i, member):
        return member.compute(i, lambda parts: 1 / 0)

    assert [type(result) for result in in_threads(Group(2).members(), call)] == [
        ZeroDivisionError
    ] * 2


def test_what_members_share_is_made_once():
    made = []
    results = in_threads(
        Group(4).members(), lambda i, member: member.share("x", lambda: made.append(i) or made)
    )
    assert len(made) == 1
    assert results == [made] * 4


@pytest.mark.parametrize("size", [1, 5])
def test_a_group_has_a_place_for_each_run(size):
    assert [member.of for member in Group(size).members()] == [size] * size
