------------------------------- MODULE Barrier -------------------------------
(***************************************************************************)
(* One branch at its participant: a try and what ends it (tcc), or an      *)
(* action and its compensation (saga: "try" and "undo" here too). Calls    *)
(* come late, twice, in any order, from two coordinators; each is one      *)
(* transaction, which may hang, be rolled back, or commit and have its     *)
(* answer lost. Rows are deleted in the end.                               *)
(*                                                                         *)
(* action here        code                                                 *)
(* ------------------ ---------------------------------------------------- *)
(* tick               time: the database's clock                           *)
(* send               the caller, adapters/calling/execute.py: a call, and *)
(*                    the same once more; it may come at any time          *)
(* TakeOver           engine/recovery.py: another node calls as well       *)
(* Decide             core/machine.py: the decision                        *)
(* look               only where it is broken: a read before the INSERT    *)
(* insert             txcoord_client/_barrier.py enter;                    *)
(*                    protocol/barrier.py: one INSERT, and what it says    *)
(* commit             participant.py _execute: rows, work and result       *)
(* roll_back          the service's code raises, or the service dies       *)
(* keep_result        only where it is broken: the result, afterwards      *)
(* do_work            only where it is broken: the work, after its row     *)
(* Answered           the answer that arrives; the others are lost         *)
(* prune, prune_one   txcoord_client/_barrier.py prune: a branch's rows    *)
(***************************************************************************)
EXTENDS Naturals, FiniteSets

CONSTANTS
    Calls,    \* t*: try, f*: confirm, u*: undo; the second of a kind is another node's
    Saga,     \* an action and its compensation
    Deadline, \* of tries
    Keep,     \* how long rows are kept
    MaxClock,
    Broken    \* rules that are broken on purpose; {} is the product

Broke(rule) == rule \in Broken

OpOf(c) == CASE c \in {"t1", "t2"} -> "try" [] c \in {"f1", "f2"} -> "confirm" [] OTHER -> "undo"
Second(c) == c \in {"f2", "u2"}
Ops == {"try", "confirm", "undo"}
Known == Keep - 1  \* Until then a row that is not there was never there: the transaction began at 0.

VARIABLES
    clock,
    dec,     \* none, commit, abort
    nodes,   \* that call
    row,     \* what is committed: st, at, and the result: of which call
    pc, new, \* of each call: where it is, and the rows that it has inserted and not committed
    got,     \* the result that its work was given
    saw,
    eff,     \* how often each op's work was done
    told     \* ops that were answered done

vars == <<clock, dec, nodes, row, pc, new, got, saw, eff, told>>

NoRow == [st |-> "none", at |-> 0, res |-> "none"]

Init ==
    /\ clock = 0 /\ dec = "none" /\ nodes = 1
    /\ row = [o \in Ops |-> NoRow]
    /\ pc = [c \in Calls |-> "unsent"]
    /\ new = [c \in Calls |-> {}]
    /\ got = [c \in Calls |-> "none"]
    /\ saw = [c \in Calls |-> "none"]
    /\ eff = [o \in Ops |-> 0]
    /\ told = {}

tick ==
    /\ clock < MaxClock
    /\ clock' = clock + 1
    /\ UNCHANGED <<dec, nodes, row, pc, new, got, saw, eff, told>>

TakeOver ==
    /\ nodes = 1 /\ dec # "none"
    /\ nodes' = 2
    /\ UNCHANGED <<clock, dec, row, pc, new, got, saw, eff, told>>

Decide(what) ==  \* An abort at any time; a commit once its try was answered.
    /\ dec = "none"
    /\ what = "commit" => "try" \in told
    /\ dec' = what
    /\ UNCHANGED <<clock, nodes, row, pc, new, got, saw, eff, told>>

send(c) ==
    /\ pc[c] = "unsent"
    /\ CASE OpOf(c) = "try" -> dec = "none"
         [] OpOf(c) = "confirm" -> dec = "commit" /\ ~Saga
         [] OTHER -> dec = "abort"
    /\ Second(c) => nodes = 2
    /\ pc' = [pc EXCEPT ![c] = "sent"]
    /\ UNCHANGED <<clock, dec, nodes, row, new, got, saw, eff, told>>

look(c) ==
    /\ Broke("looks_before") /\ pc[c] = "sent" /\ OpOf(c) = "undo"
    /\ saw' = [saw EXCEPT ![c] = row["try"].st]
    /\ pc' = [pc EXCEPT ![c] = "looked"]
    /\ UNCHANGED <<clock, dec, nodes, row, new, got, eff, told>>

Open(o) == \E c \in Calls : pc[c] = "in" /\ o \in new[c]

Entered(c, how, rows, result) ==
    /\ pc' = [pc EXCEPT ![c] = how]
    /\ new' = [new EXCEPT ![c] = rows]
    /\ got' = [got EXCEPT ![c] = result]

Try(c) ==
    CASE row["try"].st = "done" /\ ~Broke("marker_not_checked") -> Entered(c, "repeated", {}, "none")
      [] row["try"].st = "tomb" -> Entered(c, "refused", {}, "none")
      [] clock > Deadline -> Entered(c, "refused", {}, "none")
      [] clock > Known /\ ~Broke("absent_was_never") -> Entered(c, "failed", {}, "none")
      [] OTHER -> Entered(c, "in", {"try"}, "none")

Confirm(c) ==
    CASE row["confirm"].st = "done" /\ ~Broke("marker_not_checked") -> Entered(c, "repeated", {}, "none")
      [] row["try"].st # "done" -> Entered(c, "failed", {}, "none")  \* There is no result to confirm.
      [] OTHER -> Entered(c, "in", {"confirm"}, row["try"].res)

Undo(c) ==
    LET try == IF Broke("looks_before") THEN saw[c] ELSE row["try"].st
    IN CASE row["undo"].st = "done" /\ ~Broke("marker_not_checked") -> Entered(c, "repeated", {}, "none")
         [] try = "done" -> Entered(c, "in", {"undo"}, row["try"].res)
         [] clock > Known /\ ~Broke("absent_was_never") -> Entered(c, "failed", {}, "none")
         [] OTHER ->  \* Nothing to undo: the other row is a tombstone, and got stays none.
              Entered(c, "in", IF Broke("no_tombstone") \/ row["try"].st # "none" \/ Open("try")
                               THEN {"undo"} ELSE {"undo", "try"}, "none")

insert(c) ==  \* A row that another transaction has not committed is waited for.
    /\ pc[c] = (IF Broke("looks_before") /\ OpOf(c) = "undo" THEN "looked" ELSE "sent")
    /\ ~Open(OpOf(c))
    /\ OpOf(c) = "undo" => ~Open("try") \/ Broke("does_not_wait")
    /\ CASE OpOf(c) = "try" -> Try(c) [] OpOf(c) = "confirm" -> Confirm(c) [] OTHER -> Undo(c)
    /\ UNCHANGED <<clock, dec, nodes, row, saw, eff, told>>

Works(c) == OpOf(c) # "undo" \/ got[c] # "none"

commit(c) ==
    /\ pc[c] = "in"
    /\ LET state(o) == IF o = "try" /\ OpOf(c) = "undo" THEN "tomb" ELSE "done"
           result == IF Broke("result_kept_later") THEN "none" ELSE c
       IN row' = [o \in Ops |-> IF o \in new[c] THEN [st |-> state(o), at |-> clock, res |-> result] ELSE row[o]]
    /\ new' = [new EXCEPT ![c] = {}]
    /\ IF Broke("work_apart") /\ Works(c)
       THEN pc' = [pc EXCEPT ![c] = "working"] /\ UNCHANGED eff
       ELSE /\ pc' = [pc EXCEPT ![c] = "committed"]
            /\ eff' = IF Works(c) THEN [eff EXCEPT ![OpOf(c)] = @ + 1] ELSE eff
    /\ UNCHANGED <<clock, dec, nodes, got, saw, told>>

do_work(c) ==
    /\ pc[c] = "working"
    /\ pc' = [pc EXCEPT ![c] = "committed"]
    /\ eff' = [eff EXCEPT ![OpOf(c)] = @ + 1]
    /\ UNCHANGED <<clock, dec, nodes, row, new, got, saw, told>>

keep_result(c) ==
    /\ Broke("result_kept_later") /\ pc[c] = "committed" /\ OpOf(c) = "try"
    /\ row["try"].st = "done" /\ row["try"].res = "none"
    /\ row' = [row EXCEPT !["try"].res = c]
    /\ UNCHANGED <<clock, dec, nodes, pc, new, got, saw, eff, told>>

roll_back(c) ==
    /\ pc[c] \in {"in", "working"}
    /\ pc' = [pc EXCEPT ![c] = "failed"]
    /\ new' = [new EXCEPT ![c] = {}]
    /\ UNCHANGED <<clock, dec, nodes, row, got, saw, eff, told>>

Answered(c) ==
    /\ pc[c] \in {"committed", "repeated"}
    /\ pc' = [pc EXCEPT ![c] = "answered"]
    /\ told' = told \cup {OpOf(c)}
    /\ UNCHANGED <<clock, dec, nodes, row, new, got, saw, eff>>

Old(o) == clock >= row[o].at + (IF Broke("pruned_early") THEN Known ELSE Keep)
There == {o \in Ops : row[o].st # "none"}
Held == ~Saga /\ row["try"].st = "done" /\ row["confirm"].st = "none" /\ row["undo"].st = "none"

prune ==
    /\ There # {} /\ \A o \in There : Old(o)
    /\ ~Held \/ Broke("held_is_pruned")
    /\ row' = [o \in Ops |-> NoRow]
    /\ UNCHANGED <<clock, dec, nodes, pc, new, got, saw, eff, told>>

prune_one(o) ==
    /\ Broke("pruned_one_by_one")
    /\ o \in There /\ Old(o) /\ ~Held /\ ~Open(o)
    /\ row' = [row EXCEPT ![o] = NoRow]
    /\ UNCHANGED <<clock, dec, nodes, pc, new, got, saw, eff, told>>

Next ==
    \/ tick \/ TakeOver \/ prune
    \/ \E what \in {"commit", "abort"} : Decide(what)
    \/ \E c \in Calls : send(c) \/ look(c) \/ insert(c) \/ commit(c) \/ do_work(c) \/ keep_result(c)
    \/ \E c \in Calls : roll_back(c) \/ Answered(c)
    \/ \E o \in Ops : prune_one(o)

Spec == Init /\ [][Next]_vars

(* ---- what must hold ---- *)

Once == \A o \in Ops : eff[o] <= 1

DoneIsDone ==  \* What was answered done is done, and stays so.
    /\ "try" \in told => eff["try"] = 1
    /\ "confirm" \in told => eff["try"] = 1 /\ eff["confirm"] = 1

UndoneIsUndone ==  \* Once an undo was answered, nothing is held, and nothing comes later.
    "undo" \in told => eff["try"] = eff["undo"]

OnlyWhatWasDone == eff["undo"] <= eff["try"] /\ eff["confirm"] <= eff["try"]

ResultIsThere ==  \* Whoever confirms or undoes has what the try had returned.
    \A c \in Calls : pc[c] = "committed" /\ OpOf(c) = "confirm" => got[c] \in {"t1", "t2"}

HeldIsKnown == ~Saga /\ eff["try"] = 1 /\ eff["confirm"] = 0 /\ eff["undo"] = 0 => row["try"].st = "done"
=============================================================================
