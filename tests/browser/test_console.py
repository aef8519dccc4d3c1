"""A person at the console, end to end."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
import redis
from playwright.sync_api import BrowserContext, Page, Request, Route, WebSocketRoute, expect

from demo.supervisor import LocalSystem
from tests.browser.conftest import PASSWORD, Line, Person, sign_in
from tests.town import eventually


def open_shared(page: Page) -> None:
    page.get_by_role("navigation").get_by_role("button", name=re.compile("Bob")).click()
    expect(page.get_by_role("heading", name="Bob")).to_be_visible()


def bubble(page: Page, text: str) -> str:
    """The id of the one message with this text, once the API has accepted it."""
    accepted = page.locator("article[data-message-id]", has_text=text)
    expect(accepted).to_have_count(1)
    expect(page.locator("article", has_text=text)).to_have_count(1)
    message_id = accepted.get_attribute("data-message-id")
    assert message_id
    return message_id


def write(page: Page, text: str) -> None:
    page.get_by_role("textbox", name="Message").fill(text)
    page.keyboard.press("Enter")


def test_an_account_is_made_with_the_keyboard_alone(page: Page) -> None:
    page.get_by_role("button", name="Create an account").press("Enter")
    expect(page.get_by_label("Username")).to_be_focused()
    page.keyboard.type("keyboard.person")
    page.keyboard.press("Tab")
    page.keyboard.type("Keyboard Person")
    page.keyboard.press("Tab")
    page.keyboard.type(PASSWORD)
    page.keyboard.press("Enter")
    expect(page.get_by_text("No conversations yet.")).to_be_visible()
    expect(page.get_by_text("Keyboard Person")).to_be_visible()


def test_a_wrong_password_is_told_where_it_is_typed(page: Page, alice: Person) -> None:
    page.get_by_label("Username").fill(alice.username)
    page.get_by_label("Password").fill("not the password")
    page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_role("alert")).not_to_be_empty()
    expect(page.get_by_role("button", name="Sign in")).to_be_enabled()


def test_who_is_of_another_workspace_signs_in_with_its_name(page: Page, mallory: Person) -> None:
    expect(page.get_by_text("workspace/username")).to_be_visible()
    sign_in(page, mallory)
    expect(page.get_by_text("Live", exact=True)).to_be_visible()
    expect(page.get_by_text(f"@{mallory.username}")).to_be_visible()


def test_an_account_is_made_in_another_workspace(page: Page, mallory: Person) -> None:
    page.get_by_role("button", name="Create an account").click()
    page.get_by_label("Username").fill(f"{mallory.workspace}/new.person")
    page.get_by_label("Password").fill(PASSWORD)
    page.get_by_role("button", name="Create account").click()
    expect(page.get_by_text("No conversations yet.")).to_be_visible()
    assert len(mallory.get("/v1/users?username=new.person")["items"]) == 1


def test_its_socket_is_at_the_very_address_that_proxies_know(page: Page, alice: Person, system: LocalSystem) -> None:
    address = f"{system.gateway_url}/ws"
    with page.expect_websocket() as socket:
        page.evaluate(
            """async ([address, token]) => {
                const { Live } = await import("/static/web/live.js");
                await new Promise((live) => {
                    const api = { signedIn: true, token: async () => token };
                    const state = (now) => now === "live" && live();
                    new Live(api, address, { frame() {}, resync() {}, state }).connect();
                });
            }""",
            [address, alice.api.headers["Authorization"].removeprefix("Bearer ")],
        )
    assert socket.value.url == address


def test_a_reply_comes_in_live_and_the_ticks_turn(console: Page, shared: str, bob: Person) -> None:
    open_shared(console)
    write(console, "Did you get the parcel?")
    sent = bubble(console, "Did you get the parcel?")
    expect(console.locator(f"[data-message-id='{sent}']")).to_have_attribute("data-status", "SENT")
    bob.post(f"/v1/messages/{sent}/read")
    expect(console.locator(f"[data-message-id='{sent}']")).to_have_attribute("data-status", "READ")
    bob.say(shared, "Yes, this morning!")
    expect(console.get_by_role("log").get_by_text("Yes, this morning!")).to_be_visible()
    assert [each["content"] for each in bob.get(f"/v1/conversations/{shared}/messages")["items"]] == [
        "Yes, this morning!",
        "Did you get the parcel?",
    ]


def test_what_is_on_the_screen_counts_as_read(console: Page, shared: str, bob: Person) -> None:
    open_shared(console)
    message_id = bob.say(shared, "Look at this")
    bubble(console, "Look at this")
    _eventually(lambda: bob.get(f"/v1/messages/{message_id}")["status"] == "READ", console)


HEIGHTS = """log => log.querySelector("article.theirs").offsetHeight / log.clientHeight"""
SCROLLED = """async (log, part) => {
    const { top } = log.querySelector("article.theirs").getBoundingClientRect();
    log.scrollTop += top - log.getBoundingClientRect().bottom + part * log.clientHeight;
    for (let frames = 0; frames < 3; frames += 1) await new Promise(requestAnimationFrame);
}"""


def tall(lines: int) -> str:
    return "\n".join(f"line {number}." for number in range(lines))


@pytest.mark.parametrize(
    ("lines", "times"), [pytest.param(200, 2, id="200 lines"), pytest.param(800, 20, id="20 times as tall as the log")]
)
def test_a_message_that_is_taller_than_the_log_counts_as_read(
    console: Page, shared: str, bob: Person, lines: int, times: int
) -> None:
    open_shared(console)
    message_id = bob.say(shared, tall(lines))
    bubble(console, "line 0.")
    assert console.get_by_role("log").evaluate(HEIGHTS) > times
    _eventually(lambda: bob.get(f"/v1/messages/{message_id}")["status"] == "READ", console)


def test_a_tall_message_counts_as_read_once_it_fills_half_of_the_log(
    console: Page, shared: str, alice: Person, bob: Person
) -> None:
    told: list[str] = []
    console.on("request", lambda request: told.append(request.url) if request.url.endswith("/read") else None)
    alice.say(shared, tall(100))
    open_shared(console)
    expect(console.locator("article.mine")).to_have_attribute("data-status", "SENT")
    log = console.get_by_role("log")
    log.evaluate("log => (log.scrollTop = 0)")
    expect(console.get_by_role("button", name="Go to the latest message")).to_be_visible()
    message_id = bob.say(shared, tall(800))
    expect(console.locator("article.theirs")).to_have_count(1)
    log.evaluate(SCROLLED, 0.4)  # so much of the log is the message's
    assert told == []
    with console.expect_request(re.compile(f"/{message_id}/read$")):
        log.evaluate(SCROLLED, 0.6)


def test_what_is_not_on_the_screen_stays_unread(console: Page, shared: str, bob: Person) -> None:
    message_id = bob.say(shared, "Nobody looks")
    expect(console.get_by_label("1 unread")).to_be_visible()
    expect(console).to_have_title("(1) Chat4All")
    assert bob.get(f"/v1/messages/{message_id}")["status"] in {"SENT", "DELIVERED"}


def test_what_was_said_before_one_was_added_is_nothing_to_read(
    console: Page, alice: Person, bob: Person, carol: Person
) -> None:
    told: list[str] = []
    console.on("request", lambda request: told.append(request.url) if request.url.endswith("/read") else None)
    group = bob.post("/v1/conversations", members=[carol.user_id], title="The group")["conversation_id"]
    bob.say(group, "Before she came")
    stored(bob, group, "Before she came")
    bob.post(f"/v1/conversations/{group}/members", member_id=alice.user_id)
    console.get_by_role("navigation").get_by_role("button", name=re.compile("The group")).click()
    bubble(console, "Before she came")
    with console.expect_response(re.compile("/read$")):
        welcome = bob.say(group, "Welcome")
    bubble(console, "Welcome")
    expect(console).to_have_title("Chat4All")
    assert [url.split("/")[-2] for url in told] == [welcome]


def test_the_way_of_a_message_is_shown_behind_its_ticks(console: Page, shared: str, bob: Person) -> None:
    open_shared(console)
    write(console, "Trace me")
    sent = bubble(console, "Trace me")
    bob.post(f"/v1/messages/{sent}/read")
    expect(console.locator(f"[data-message-id='{sent}']")).to_have_attribute("data-status", "READ")
    console.get_by_role("button", name="Read: delivery details").click()
    details = console.get_by_role("dialog", name="Delivery details")
    expect(details.get_by_role("heading", name="Bob")).to_be_visible()
    expect(details.get_by_role("listitem")).to_contain_text(["Sent", "Read"])
    console.keyboard.press("Escape")
    expect(details).to_be_hidden()


def test_markup_in_a_message_stays_text(console: Page, shared: str, bob: Person) -> None:
    open_shared(console)
    attack = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script> javascript:alert(1)"
    bob.say(shared, attack)
    expect(console.get_by_role("log").get_by_text(attack)).to_be_visible()
    assert console.get_by_role("log").locator("img, script, a").count() == 0
    assert "owned" not in console.title()


def test_a_file_goes_out_and_comes_back_whole(console: Page, shared: str, bob: Person, tmp_path: Path) -> None:
    open_shared(console)
    document = tmp_path / "relatório.pdf"
    document.write_bytes(b"%PDF-1.7 " + bytes(range(256)) * 100)
    console.get_by_label("File", exact=True).set_input_files(document)
    write(console, "The report")
    expect(console.get_by_role("button", name="Download relatório.pdf, 25 KB")).to_be_visible()
    file_id = bob.get(f"/v1/messages/{bubble(console, 'The report')}")["file_id"]
    link = bob.get(f"/v1/files/{file_id}/download")["download_url"]
    assert httpx.get(link).content == document.read_bytes()
    with console.expect_download() as download:
        console.get_by_role("button", name="Download relatório.pdf, 25 KB").click()
    assert download.value.path().read_bytes() == document.read_bytes()
    assert download.value.suggested_filename == "relatório.pdf"


def test_long_history_is_fetched_while_scrolling_up(console: Page, shared: str, bob: Person) -> None:
    for number in range(120):
        bob.say(shared, f"number {number}.")
    console.reload()
    open_shared(console)
    log = console.get_by_role("log")
    expect(log.get_by_text("number 119.")).to_be_in_viewport()
    for _ in range(150):  # who scrolls while a page is on its way scrolls again
        log.evaluate("log => (log.scrollTop = 0)")
        if console.locator("article").count() == 120:
            break
        console.wait_for_timeout(200)
    expect(console.locator("article")).to_have_count(120)
    texts = console.locator("article p").all_inner_texts()
    assert texts == [f"number {number}." for number in range(120)]


def test_history_that_leaves_room_in_the_log_is_followed_by_what_is_older(
    console: Page, shared: str, alice: Person
) -> None:
    for number in range(120):
        alice.say(shared, f"number {number}.")
    console.set_viewport_size({"width": 1280, "height": 6_000})
    console.reload()
    open_shared(console)
    expect(console.locator("article")).to_have_count(120)


HISTORY = re.compile(r"/v1/conversations/([^/]+)/messages\?")
FURTHER_LISTS = re.compile(r"/v1/conversations\?.*cursor=")


@pytest.fixture
def three_pages(alice: Person, bob: Person) -> str:
    """Of Alice's conversations, with that about the parcel, whose id this is, on the last."""
    titles = ("The parcel", *(f"Another {number}" for number in range(65)))
    made = [bob.post("/v1/conversations", members=[alice.user_id], title=title) for title in titles]
    return str(made[0]["conversation_id"])


@pytest.mark.usefixtures("three_pages")
def test_a_search_finds_what_is_on_a_later_page(page: Page, alice: Person) -> None:
    sign_in(page, alice)
    expect(page.get_by_role("navigation").get_by_text("Another 64")).to_be_visible()
    page.get_by_role("searchbox").fill("parcel")
    expect(page.get_by_role("navigation").get_by_text("The parcel")).to_be_visible()


def test_a_search_fetches_messages_of_what_it_shows_alone(page: Page, alice: Person, three_pages: str) -> None:
    asked: set[str] = set()

    def note(request: Request) -> None:
        if found := HISTORY.search(request.url):
            asked.add(found[1])

    page.on("request", note)
    sign_in(page, alice)
    _eventually(lambda: len(asked) == 30, page)  # the first page's
    page.get_by_role("searchbox").fill("parcel")
    _eventually(lambda: three_pages in asked, page)
    assert len(asked) == 31, "its turn was the last"
    page.get_by_role("searchbox").fill("")
    _eventually(lambda: len(asked) == 66, page)


@pytest.mark.usefixtures("three_pages")
def test_nothing_is_found_only_once_all_was_looked_through(page: Page, alice: Person) -> None:
    sign_in(page, alice)
    expect(page.get_by_text("Live", exact=True)).to_be_visible()
    expect(page.get_by_role("navigation").get_by_text("Another 64")).to_be_visible()
    further = held(page, FURTHER_LISTS)
    page.get_by_role("searchbox").fill("nobody called it that")
    expect(page.get_by_text("Still looking…")).to_be_visible()
    _eventually(lambda: further, page)
    further[0]()
    expect(page.get_by_text("Nothing found.")).to_be_visible()


@pytest.mark.usefixtures("three_pages")
def test_a_search_goes_on_after_a_page_that_failed(page: Page, alice: Person) -> None:
    sign_in(page, alice)
    expect(page.get_by_role("navigation").get_by_text("Another 64")).to_be_visible()
    page.route(FURTHER_LISTS, lambda route: route.abort(), times=1)
    page.get_by_role("searchbox").fill("parcel")
    expect(page.get_by_role("navigation").get_by_text("The parcel")).to_be_visible()


def test_what_came_while_the_gateway_was_away_is_shown_when_it_is_back(
    console: Page, shared: str, bob: Person, system: LocalSystem
) -> None:
    open_shared(console)
    bob.say(shared, "before")
    bubble(console, "before")
    system.kill("gateway")
    expect(console.get_by_text("Reconnecting…")).to_be_visible()
    try:
        bob.say(shared, "meanwhile")
        write(console, "I can still write")
    finally:
        system.restart("gateway")
    expect(console.get_by_text("Live", exact=True)).to_be_visible(timeout=30_000)
    bubble(console, "meanwhile")
    bubble(console, "I can still write")


def test_what_could_not_be_fetched_after_a_resync_is_fetched_when_it_is_opened(
    console: Page, shared: str, alice: Person, bob: Person, system: LocalSystem
) -> None:
    bob.say(shared, "before")
    open_shared(console)
    bubble(console, "before")
    other = alice.post("/v1/conversations", members=[bob.user_id], title="The other one")["conversation_id"]
    bob.say(other, "aside")
    console.get_by_role("navigation").get_by_role("button", name=re.compile("The other one")).click()
    bubble(console, "aside")
    history = re.compile(r"/v1/conversations/[^/]+/messages")
    console.route(history, lambda route: route.abort())
    system.kill("gateway")
    try:
        bob.say(shared, "meanwhile")
        with redis.Redis.from_url(system.env["BUS_URL"]) as bus:
            eventually(lambda: alice.get(f"/v1/conversations/{shared}/messages")["items"][0]["content"] == "meanwhile")
            bus.flushall()
    finally:
        with console.expect_event("requestfailed", lambda request: shared in request.url, timeout=60_000):
            system.restart("gateway")
    console.unroute(history)
    open_shared(console)
    bubble(console, "meanwhile")


LISTS, HISTORIES = re.compile(r"/v1/conversations\?"), re.compile(r"/v1/conversations/[^/]+/messages")


def test_a_page_from_before_a_resync_leaves_no_hole(
    page: Page, lines: list[Line], alice: Person, bob: Person, shared: str
) -> None:
    bob.say(shared, "before")
    stored(bob, shared, "before")
    history = held(page, HISTORIES)
    sign_in(page, alice)
    _eventually(lambda: history and lines, page)
    bob.say(shared, "meanwhile")
    stored(bob, shared, "meanwhile")
    listed = held(page, LISTS)
    lines[0].greet()
    _eventually(lambda: listed, page)
    shown = page.get_by_role("navigation")
    history[0]()
    expect(shown.get_by_text("before")).to_be_visible()
    listed[0]()
    expect(shown.get_by_text("meanwhile")).to_be_visible()


def test_a_list_from_before_a_resync_does_not_stand_for_that_after_it(
    page: Page, lines: list[Line], alice: Person, bob: Person
) -> None:
    listed = held(page, LISTS)
    sign_in(page, alice)
    _eventually(lambda: listed and lines, page)
    bob.post("/v1/conversations", members=[alice.user_id], title="Meanwhile")
    lines[0].greet()
    expect(page.get_by_text("Live", exact=True)).to_be_visible()
    listed[0]()
    expect(page.get_by_role("navigation").get_by_text("Meanwhile")).to_be_visible()


def held(page: Page, address: re.Pattern[str]) -> list[Callable[[], None]]:
    """The first answer from there, as it is at the time of the request, is given when it is called."""
    answers: list[Callable[[], None]] = []

    def hold(route: Route) -> None:
        if answers:
            route.continue_()
            return
        answer = route.fetch()
        answers.append(lambda: route.fulfill(response=answer))

    page.route(address, hold)
    return answers


def stored(person: Person, conversation: str, text: str) -> None:
    history = f"/v1/conversations/{conversation}/messages"
    eventually(lambda: text in {each["content"] for each in person.get(history)["items"]})


def test_a_conversation_that_one_was_removed_from_is_gone(
    console: Page, alice: Person, bob: Person, carol: Person
) -> None:
    members = [alice.user_id, carol.user_id]
    group = bob.post("/v1/conversations", members=members, title="The group")["conversation_id"]
    bob.say(group, "For members only")
    console.get_by_role("navigation").get_by_role("button", name=re.compile("The group")).click()
    bubble(console, "For members only")
    assert bob.api.delete(f"/v1/conversations/{group}/members/{alice.user_id}").is_success
    expect(console.get_by_role("heading", name="Pick a conversation")).to_be_visible()
    expect(console.get_by_role("textbox", name="Message")).to_be_hidden()
    expect(console.get_by_text("For members only")).to_have_count(0)
    expect(console.get_by_role("navigation").get_by_role("button")).to_have_count(0)
    assert not urlsplit(console.url).fragment


def test_a_line_that_fell_silent_is_given_up_without_its_answer(page: Page, lines: list[Line], alice: Person) -> None:
    sign_in(page, alice)
    _eventually(lambda: lines, page)
    lines[0].greet(heartbeat_s=0.1)
    _eventually(lambda: lines[1:], page)


def test_who_looks_again_finds_out_whether_the_line_lives(page: Page, lines: list[Line], alice: Person) -> None:
    page.clock.install()
    sign_in(page, alice)
    _eventually(lambda: lines, page)
    lines[0].greet()
    expect(page.get_by_text("Live", exact=True)).to_be_visible()
    for answers in (True, False):
        page.evaluate("dispatchEvent(new Event('online'))")
        _eventually(lambda: lines[0].said == [{"type": "ping"}], page)
        lines[0].said.clear()
        if answers:
            with page.expect_request(LISTS):
                lines[0].tell("pong")
                lines[0].tell("resync", epoch="e", seq=0)  # shows that the one before it was heard
        page.clock.fast_forward(6_000)
        expect(page.get_by_text("Live" if answers else "Reconnecting…", exact=True)).to_be_visible()
    _eventually(lambda: lines[1:], page)


def test_a_page_that_made_room_for_newer_ones_says_so_until_it_is_looked_at(
    page: Page, lines: list[Line], alice: Person
) -> None:
    sign_in(page, alice)
    _eventually(lambda: lines, page)
    lines[0].greet()
    expect(page.get_by_text("Live", exact=True)).to_be_visible()
    lines[0].close(4409)
    expect(page.get_by_text("Paused: open elsewhere")).to_be_visible()
    page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
    _eventually(lambda: lines[1:], page)
    lines[1].greet()
    expect(page.get_by_text("Live", exact=True)).to_be_visible()


def test_an_acknowledgement_that_was_lost_with_its_socket_is_made_good(
    page: Page, alice: Person, bob: Person, shared: str
) -> None:
    sockets: list[WebSocketRoute] = []
    lost: list[str | bytes] = []

    def opened(socket: WebSocketRoute) -> None:
        server = socket.connect_to_server()
        if not sockets:
            socket.on_message(lambda said: lost.append(said) if lost or "ack" in str(said) else server.send(said))
        sockets.append(socket)

    page.route_web_socket(re.compile("^ws"), opened)
    page.reload()
    sign_in(page, alice)
    expect(page.get_by_text("Live", exact=True)).to_be_visible()
    message_id = bob.say(shared, "Did it arrive?")
    _eventually(lambda: lost, page)
    assert bob.get(f"/v1/messages/{message_id}")["status"] == "SENT"
    sockets[0].close(code=1012)
    _eventually(lambda: bob.get(f"/v1/messages/{message_id}")["status"] == "DELIVERED", page)


def test_it_comes_back_behind_what_it_surely_acknowledged(page: Page, lines: list[Line], alice: Person) -> None:
    sign_in(page, alice)
    _eventually(lambda: lines, page)
    lines[0].greet()
    lines[0].tell("news", epoch="e", seq=1)
    first, second = ({"type": "ack", "epoch": "e", "seq": seq} for seq in (1, 2))
    _eventually(lambda: lines[0].said == [first, {"type": "ping"}], page)
    lines[0].tell("pong", epoch="e", acked=1)
    lines[0].tell("news", epoch="e", seq=2)
    _eventually(lambda: second in lines[0].said, page)
    lines[0].close()
    _eventually(lambda: lines[1:], page)
    assert urlsplit(lines[1].url).query == "epoch=e&since=1"
    lines[1].greet(seq=2)
    lines[1].tell("news", epoch="e", seq=2)
    _eventually(lambda: lines[1].said[:1] == [second], page)


def test_a_stream_that_was_set_back_is_loaded_again(
    page: Page, lines: list[Line], alice: Person, bob: Person, shared: str
) -> None:
    sign_in(page, alice)
    _eventually(lambda: lines, page)
    lines[0].greet(seq=7)
    lines[0].tell("news", epoch="e", seq=8)
    _eventually(lambda: lines[0].said, page)
    lines[0].close()
    _eventually(lambda: lines[1:], page)
    with page.expect_request(LISTS):
        lines[1].greet(seq=7)
    message = {"message_id": "m", "conversation_id": shared, "sender_id": bob.user_id, "content": "Another eighth"}
    told = {"status": "SENT", "statuses": [], "accepted_at": "2026-01-01T00:00:00.000Z"}
    lines[1].tell("message", epoch="e", seq=8, message={**message, **told})
    expect(page.get_by_role("navigation").get_by_text("Another eighth")).to_be_visible()


def test_signing_out_while_a_token_is_refreshed_stays_signed_out(console: Page) -> None:
    console.evaluate(
        """() => {
            const session = JSON.parse(sessionStorage.getItem(Object.keys(sessionStorage)[0]));
            sessionStorage.setItem(Object.keys(sessionStorage)[0], JSON.stringify({...session, expiresAt: 0}));
        }"""
    )
    held: list[Route] = []
    console.route("**/auth/token/refresh", lambda route: held.append(route))  # noqa: PLW0108 - Playwright marks its handlers
    with console.expect_request("**/auth/token/refresh"):
        console.reload()
    console.get_by_role("button", name="Sign out").click()
    expect(console.get_by_label("Username")).to_be_visible()
    with console.expect_response("**/auth/token/refresh"):
        held[0].continue_()
    console.unroute("**/auth/token/refresh")
    console.reload()
    expect(console.get_by_label("Username")).to_be_visible()


def test_a_conversation_is_started_by_username(console: Page, bob: Person) -> None:
    console.get_by_role("button", name="New conversation").click()
    console.get_by_label("With").fill("nobody.of.that.name")
    console.get_by_role("button", name="Start").click()
    expect(console.get_by_role("alert")).to_have_text("There is no user called nobody.of.that.name.")
    console.get_by_label("With").fill(bob.username)
    console.get_by_role("button", name="Start").click()
    expect(console.get_by_role("heading", name="Bob")).to_be_visible()
    write(console, "Hello Bob")
    bubble(console, "Hello Bob")
    assert len(bob.get("/v1/conversations")["items"]) == 1


def test_a_reply_quotes_what_it_answers(console: Page, shared: str, bob: Person) -> None:
    asked = bob.say(shared, "Blue or grey?")
    open_shared(console)
    bubble(console, "Blue or grey?")
    console.get_by_role("button", name=re.compile("Reply to")).click()
    write(console, "Green")
    expect(console.locator("article.mine .quote")).to_contain_text("Blue or grey?")
    answer = bob.get(f"/v1/messages/{bubble(console, 'Green')}")
    assert (answer["content"], answer["reply_to"]) == ("Green", asked)


def test_a_message_that_could_not_be_sent_is_sent_once_on_request(
    console: Page, shared: str, bob: Person, context: BrowserContext
) -> None:
    open_shared(console)
    context.set_offline(True)
    write(console, "Through the tunnel")
    expect(console.get_by_role("button", name="Not sent. Try again")).to_be_visible()
    context.set_offline(False)
    console.get_by_role("button", name="Not sent. Try again").click()
    bubble(console, "Through the tunnel")
    _eventually(lambda: len(bob.get(f"/v1/conversations/{shared}/messages")["items"]) == 1, console)


def test_a_reload_keeps_the_session_and_signing_out_ends_it(console: Page) -> None:
    console.reload()
    expect(console.get_by_text("Live", exact=True)).to_be_visible()
    console.get_by_role("button", name="Sign out").click()
    expect(console.get_by_label("Username")).to_be_visible()
    assert console.evaluate("sessionStorage.length + localStorage.length") == 0


def test_signing_out_ends_the_session_at_the_server(console: Page, system: LocalSystem) -> None:
    session = console.evaluate("JSON.parse(sessionStorage.getItem(sessionStorage.key(0)))")
    console.get_by_role("button", name="Sign out").click()
    expect(console.get_by_label("Username")).to_be_visible()

    def is_over() -> bool:
        body = {"refresh_token": session["refresh"]}
        return httpx.post(f"{system.api_url}/auth/token/refresh", json=body).status_code == 401

    eventually(is_over, within_s=5)  # 10 s after we used it the token would be refused anyway


def test_a_phone_shows_one_pane_at_a_time(console: Page, shared: str) -> None:
    console.set_viewport_size({"width": 390, "height": 780})
    open_shared(console)
    expect(console.get_by_role("searchbox")).to_be_hidden()
    assert console.evaluate("document.documentElement.scrollWidth <= innerWidth")
    console.get_by_role("button", name="Back to the conversations").click()
    expect(console.get_by_role("searchbox")).to_be_visible()
    expect(console.get_by_role("log")).to_be_hidden()


ME, BOB = "me", "bob"
STATUS_NEWS = [
    pytest.param(["SENT", "DELIVERED", "READ"], "READ", id="in order"),
    pytest.param(["READ", "DELIVERED", "SENT"], "READ", id="in reverse"),
    pytest.param(["FAILED", "DELIVERED"], "DELIVERED", id="late evidence overrides a failure"),
    pytest.param(["READ", "FAILED"], "READ", id="a failure after it was read"),
    pytest.param(["FAILED", "SENT"], "SENT", id="tried again"),
]


@pytest.mark.parametrize(("news", "shown"), STATUS_NEWS)
@pytest.mark.parametrize("message_first", [True, False])
def test_statuses_only_move_forward_in_whatever_order_they_come(
    page: Page, news: list[str], shown: str, message_first: bool
) -> None:
    result = page.evaluate(
        """async ([news, messageFirst]) => {
            const { Conversation } = await import("/static/web/store.js");
            const conversation = new Conversation({ conversation_id: "c" });
            const message = { message_id: "m", sender_id: "me", status: "ACCEPTED", accepted_at: "2026-01-01T00:00:00Z",
                              statuses: [{ recipient_id: "bob", status: "ACCEPTED", at: "2026-01-01T00:00:00Z" }] };
            if (messageFirst) conversation.add(message);
            news.forEach((status, i) => conversation.apply(
                { message_id: "m", recipient_id: "bob", status, at: `2026-01-01T00:00:0${i + 1}Z` }));
            if (!messageFirst) conversation.add(message);
            return conversation.messages.get("m").status;
        }""",
        [news, message_first],
    )
    assert result == shown


def test_a_conversation_does_not_fall_back_in_the_list(page: Page) -> None:
    """A page may be older than the frames before it, and a frame may know only when the conversation began."""
    assert page.evaluate(
        """async () => {
            const { Conversation } = await import("/static/web/store.js");
            const at = (day) => ({ last_activity_at: `2026-01-0${day}T00:00:00.000Z` });
            const conversation = new Conversation({ conversation_id: "c", ...at(2) });
            return [at(1), {}, at(3)].map((fields) => {
                conversation.update({ conversation_id: "c", ...fields });
                return conversation.last_activity_at.slice(0, 10);
            });
        }"""
    ) == ["2026-01-02", "2026-01-02", "2026-01-03"]


def _eventually(condition: object, page: Page) -> None:
    """Wait for something outside of the page, while the page goes on living."""
    assert callable(condition)
    for _ in range(150):
        if condition():
            return
        page.wait_for_timeout(100)
    raise AssertionError("it did not happen within 15 s")
