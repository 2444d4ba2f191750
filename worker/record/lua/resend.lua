-- Before the reconciler sends a task's message again: checks that the task was not updated since
-- the reconciler read it.
--
-- task        ns:{id}:task  hash        read
-- open        ns:open       sorted set  id moved to the current time, so that the message has time
--                                       to arrive
-- id
-- touched_at  the score in ns:open that the reconciler saw
-- max_bytes   longest request that is returned: a message with a longer one could not be taken
-- Returns the request's JSON, or nothing when the task is held or was updated meanwhile.
local task, open = unpack(KEYS)
local id, touched_at, max_bytes = unpack(ARGV)
local score = redis.call('ZSCORE', open, id)
if not score or tonumber(score) ~= tonumber(touched_at) then return false end
local status, lease_until, request = unpack(
  redis.call('HMGET', task, 'status', 'lease_until', 'request'))
if not status then
  redis.call('ZREM', open, id)
  return false
end
if status == 'running' and tonumber(lease_until or '0') > now_s() then return false end
redis.call('ZADD', open, stamp(now_s()), id)
-- Redis users of producers may write any request; the next claim refuses `null`.
return request and #request <= tonumber(max_bytes) and request or 'null'
