-- Writes the record of a task unless one exists.
--
-- task        ns:{id}:task    hash        written
-- events      ns:{id}:events  stream      event `queued` appended
-- open        ns:open         sorted set  id added
-- id
-- request     JSON
-- tail        of the event `queued`, see append_event.lua
-- queue
-- deadline_s  seconds from now, or ''
-- Returns {status, request} of the record, without the request where it is the given one.
local task, events, open = unpack(KEYS)
local id, request, tail, queue, deadline_s = unpack(ARGV)
local status = redis.call('HGET', task, 'status')
if status then return {status, redis.call('HGET', task, 'request')} end
local now = now_s()
redis.call('HSET', task, 'status', 'queued', 'attempt', 0, 'fence', 0, 'request', request,
  'queue', queue, 'submitted_at', stamp(now))
if deadline_s ~= '' then redis.call('HSET', task, 'deadline_at', stamp(now + deadline_s)) end
redis.call('ZADD', open, stamp(now), id)
append_event(task, events, tail)
return {'queued'}
