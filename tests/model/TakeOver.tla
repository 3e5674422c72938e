------------------------------ MODULE TakeOver ------------------------------
(***************************************************************************)
(* Phase two of a committed transaction on several nodes: rows are claimed *)
(* with an epoch, a node that was thought dead goes on with what it knows, *)
(* and operators give orders in between. A lease only says when a claim is *)
(* worth while; nothing here depends on it, so a claim is possible at any  *)
(* time.                                                                   *)
(*                                                                         *)
(* action here        code                                                 *)
(* ------------------ ---------------------------------------------------- *)
(* take_over          engine/recovery.py take_over; adapters/sql/upkeep.py *)
(*                    claim                                                *)
(* finish             engine/phase_two.py _finish, on the database         *)
(* BranchFinished     core/settle.py progress, close; Coordinator.tell     *)
(* BranchFailed       the same: to be tried again                          *)
(* HeuristicSeen      the same: parked                                     *)
(* write              adapters/sql: PROGRESS with expected_epoch, late     *)
(* Operate            core/settle.py operate; Coordinator.operate          *)
(* write_order        adapters/sql: OPERATE with expected_epoch            *)
(* by_hand            a person rolls a prepared branch back                *)
(* crash              a node is gone, with all that it had not written     *)
(***************************************************************************)
EXTENDS Naturals, FiniteSets

CONSTANTS
    Nodes, Branches, MaxEpoch, Orders,
    Broken  \* rules that are broken on purpose; {} is the product

Broke(rule) == rule \in Broken

VARIABLES
    row,    \* [epoch, br, ended]: the log's
    live,   \* [on, epoch, br, ended, troubled]: what each node carries out
    seen,   \* what the databases have answered, and the node has not taken in yet
    lazy,   \* [on, exp, epoch, br, all, ended]: what a node has still to write
    order,  \* the same for an operator's order that is on its way
    db,
    told

vars == <<row, live, seen, lazy, order, db, told>>

Settled == {"done", "resolved"}
Finishing == [b \in Branches |-> "finishing"]
NotLive == [on |-> FALSE, epoch |-> 0, br |-> Finishing, ended |-> FALSE, troubled |-> FALSE]
Nothing == [on |-> FALSE, exp |-> 0, epoch |-> 0, br |-> Finishing, all |-> FALSE, ended |-> FALSE]
Unseen == [b \in Branches |-> "none"]

Init ==  \* Just committed; nobody has begun with it.
    /\ row = [epoch |-> 1, br |-> Finishing, ended |-> FALSE]
    /\ live = [n \in Nodes |-> NotLive]
    /\ seen = [n \in Nodes |-> Unseen]
    /\ lazy = [n \in Nodes |-> Nothing]
    /\ order = Nothing
    /\ db = [b \in Branches |-> "prepared"]
    /\ told = FALSE

Troubled(br) == \E b \in Branches : br[b] \in {"parked", "resolved"}

take_over(n) ==
    /\ ~row.ended
    /\ \E b \in Branches : row.br[b] = "finishing"  \* A row at rest is an operator's.
    /\ row.epoch < MaxEpoch
    /\ row' = IF Broke("claim_keeps_epoch") THEN row ELSE [row EXCEPT !.epoch = @ + 1]
    /\ live' = [live EXCEPT ![n] = [on |-> TRUE, epoch |-> row'.epoch, br |-> row.br, ended |-> FALSE,
                                    troubled |-> Troubled(row.br)]]
    /\ seen' = [seen EXCEPT ![n] = Unseen]
    /\ UNCHANGED <<lazy, order, db, told>>

finish(n, b) ==  \* With proof: a tag, or the marker.
    /\ live[n].on /\ live[n].br[b] = "finishing" /\ seen[n][b] = "none"
    /\ db' = [db EXCEPT ![b] = IF @ = "prepared" THEN "committed" ELSE @]
    /\ \/ seen' = [seen EXCEPT ![n][b] = IF db'[b] = "committed" THEN "DONE" ELSE "HEURISTIC"]
       \/ seen' = [seen EXCEPT ![n][b] = "RETRY"]  \* The reply was lost; or nothing was reached.
    /\ UNCHANGED <<row, live, lazy, order, told>>

(* What a node makes of an answer: it moves its own copy, and writes it when it must. *)
Moved(n, b, to, always) ==
    LET br == [live[n].br EXCEPT ![b] = to]
        ended == \A c \in Branches : br[c] \in Settled
        troubled == live[n].troubled \/ always
        epoch == IF ended /\ ~Broke("end_keeps_epoch") THEN live[n].epoch + 1 ELSE live[n].epoch
    IN /\ live' = [live EXCEPT ![n] = IF ended THEN NotLive
                                      ELSE [on |-> TRUE, epoch |-> epoch, br |-> br, ended |-> FALSE,
                                            troubled |-> troubled]]
       /\ lazy' = IF ended \/ troubled
                  THEN [lazy EXCEPT ![n] = [on |-> TRUE, exp |-> live[n].epoch, epoch |-> epoch, br |-> br,
                                            all |-> troubled, ended |-> ended]]
                  ELSE lazy
       /\ told' = (told \/ (ended /\ \A c \in Branches : br[c] = "done"))
       /\ seen' = [seen EXCEPT ![n] = IF ended THEN Unseen ELSE [@ EXCEPT ![b] = "none"]]

BranchFinished(n, b) ==
    /\ live[n].on /\ seen[n][b] = "DONE" /\ live[n].br[b] = "finishing"
    /\ Moved(n, b, "done", FALSE)
    /\ UNCHANGED <<row, order, db>>

BranchFailed(n, b) ==
    /\ live[n].on /\ seen[n][b] = "RETRY" /\ live[n].br[b] = "finishing"
    /\ Moved(n, b, "finishing", TRUE)
    /\ UNCHANGED <<row, order, db>>

HeuristicSeen(n, b) ==
    /\ live[n].on /\ seen[n][b] = "HEURISTIC" /\ live[n].br[b] = "finishing"
    /\ Moved(n, b, "parked", TRUE)
    /\ UNCHANGED <<row, order, db>>

(* An end that went well is written without its branches: they are done because it has ended. *)
Written(w) ==
    [epoch |-> w.epoch, ended |-> w.ended, br |-> IF w.all THEN w.br ELSE row.br]

write(n) ==
    /\ lazy[n].on
    /\ lazy' = [lazy EXCEPT ![n] = Nothing]
    /\ IF lazy[n].exp = row.epoch \/ Broke("no_epoch")
       THEN /\ row' = Written(lazy[n])
            /\ UNCHANGED <<live, seen>>
       ELSE /\ UNCHANGED row  \* CONFLICT: another node has it. What is known here is old.
            /\ live' = [live EXCEPT ![n] = IF @.epoch <= lazy[n].epoch THEN NotLive ELSE @]
            /\ seen' = [seen EXCEPT ![n] = IF live[n].epoch <= lazy[n].epoch THEN Unseen ELSE @]
    /\ UNCHANGED <<order, db, told>>

Operate(b, what) ==  \* At any node, by the row as it is read.
    /\ ~order.on /\ ~row.ended /\ row.epoch < MaxEpoch
    /\ \/ what = "resolved" /\ row.br[b] \in {"finishing", "parked"}
       \/ what = "parked" /\ row.br[b] = "finishing"
       \/ what = "finishing" /\ row.br[b] = "parked"
    /\ LET br == [row.br EXCEPT ![b] = what]
       IN order' = [on |-> TRUE, exp |-> row.epoch, epoch |-> row.epoch + 1, br |-> br, all |-> TRUE,
                    ended |-> \A c \in Branches : br[c] \in Settled]
    /\ UNCHANGED <<row, live, seen, lazy, db, told>>

write_order ==
    /\ order.on
    /\ order' = Nothing
    /\ row' = IF order.exp = row.epoch \/ Broke("order_without_epoch") THEN Written(order) ELSE row
    /\ UNCHANGED <<live, seen, lazy, db, told>>

by_hand(b) ==
    /\ db[b] = "prepared"
    /\ \A c \in Branches : db[c] # "rolledback"
    /\ db' = [db EXCEPT ![b] = "rolledback"]
    /\ UNCHANGED <<row, live, seen, lazy, order, told>>

crash(n) ==
    /\ live[n].on \/ lazy[n].on
    /\ live' = [live EXCEPT ![n] = NotLive]
    /\ seen' = [seen EXCEPT ![n] = Unseen]
    /\ lazy' = [lazy EXCEPT ![n] = Nothing]
    /\ UNCHANGED <<row, order, db, told>>

Next ==
    \/ \E n \in Nodes : take_over(n) \/ write(n) \/ crash(n)
    \/ \E n \in Nodes, b \in Branches : finish(n, b) \/ BranchFinished(n, b) \/ BranchFailed(n, b) \/ HeuristicSeen(n, b)
    \/ \E b \in Branches, what \in Orders : Operate(b, what)
    \/ write_order
    \/ \E b \in Branches : by_hand(b)

Spec == Init /\ [][Next]_vars

(* ---- what must hold ---- *)

Done(b) == row.br[b] = "done" \/ (row.ended /\ row.br[b] = "finishing")

EndIsTrue ==  \* No end with a branch that is neither committed nor in a person's hands.
    row.ended => \A b \in Branches : Done(b) => db[b] = "committed"

ToldTheTruth == told => \A b \in Branches : db[b] = "committed"

EndIsFinal == [][row.ended => row'.ended]_vars

OrderIsKept == [][\A b \in Branches : row.br[b] = "resolved" => row'.br[b] = "resolved"]_vars

ParkedStays ==  \* But for an operator.
    [][order' = order => \A b \in Branches : row.br[b] = "parked" => row'.br[b] = "parked"]_vars
=============================================================================
